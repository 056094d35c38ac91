"""Controls: what a score is without a part of the input, from frames in another order to swapped words."""
