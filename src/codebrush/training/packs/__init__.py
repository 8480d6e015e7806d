"""From captioned pictures and a time budget to a whole pack."""
