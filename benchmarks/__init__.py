"""Speed and quality, measured against peers and references; `cfgdiff bench`, `cfgdiff eval` and `cfgdiff classifier`
show them."""
