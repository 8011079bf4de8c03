"""emoji-64: pictures of emoji from their names, drawn from VQ codes of 64 x 64 pixels."""
