"""A whole federation on one machine: the real server app and client app, without the network between them."""
