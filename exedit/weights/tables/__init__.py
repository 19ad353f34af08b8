"""One table per network: how other layouts name our parameters, read in both directions."""
