"""Data sets: `generate` draws them, `filter` keeps what is fit to train on, `report` shows what was sampled."""
