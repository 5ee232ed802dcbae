"""Public data sets in verl's schema, and the overlap between them."""
