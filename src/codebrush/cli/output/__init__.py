"""What commands show and save: JSON and tables, progress, pictures, and answers to queries that are typed."""
