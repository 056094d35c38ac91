"""Units of work, and the tables and pictures of the corpora that are made of them."""
