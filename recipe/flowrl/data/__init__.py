"""Task generators that write verl's parquet schema."""
