"""A trained model for its users: embed, match, ask, name entities, search, export."""
