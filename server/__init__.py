"""The aggregation server: a Flower ServerApp that owns its round loop, strategies, aggregation and run records."""
