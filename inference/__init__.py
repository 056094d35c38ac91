"""A trained model for its users: embed, match, ask, name entities, search, export. It is no stage:
no plan runs it."""
