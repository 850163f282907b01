"""Everything that touches RecBole: its quirks, settings, data set, trainer and evaluator."""
