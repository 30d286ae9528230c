"""MANet and SR-MAC as a library: pictures in, descriptors, indices and answers out. No Ray, no network but the client's."""
