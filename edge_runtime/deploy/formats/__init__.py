"""Writers: a `FloatModel` or a `QuantisedModel` to the bytes of a model file. What a format can't hold is refused."""
