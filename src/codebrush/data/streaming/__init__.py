"""Sources of many shards, read while they are needed: from folders, over HTTP, from object storage and the hub."""
