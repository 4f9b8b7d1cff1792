"""Model cards: of a pipeline, of converted weights, of an adapter, and the results in them."""
