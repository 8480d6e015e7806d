"""Any folder, table, set of shards or hub dataset, read as rows of captioned pictures."""
