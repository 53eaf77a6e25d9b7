"""Published torch weights <-> our parameter paths: one rule table per family."""
