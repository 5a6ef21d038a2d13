"""Words in a prompt: spelling, plurals, and the tokens that stand for them."""
