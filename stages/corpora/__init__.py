"""What the stages that make corpora share, and looking at a corpus."""
