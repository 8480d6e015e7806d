"""Names of published models in; verified files and installed packs on this machine out."""
