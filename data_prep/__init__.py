"""Text -> documents -> sentences -> tokens -> sample shards with a manifest; the masking function."""
