"""The device's end of a federation: a Flower ClientApp that trains on local data and sends back an encoded delta."""
