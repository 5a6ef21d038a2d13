"""Fast tests of the training code: no network, no emoji packs, no trained weights."""
