"""Files of shops, as events and items: the one reader of `headwater import`, `train` and `evaluate`."""
