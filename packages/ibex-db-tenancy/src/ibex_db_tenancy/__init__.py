"""Organizations, users, agents, tokens, directives."""
