"""Model cards: of a pipeline, a training, converted weights and an adapter, and the results of evaluations in them."""
