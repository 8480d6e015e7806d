"""Reads any folder, table, shards or hub data set as rows of captioned pictures, and writes shards."""
