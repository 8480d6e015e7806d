"""The models that belong together: one folder with pack.json and a sub-folder for each member."""
