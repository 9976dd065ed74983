"""`joulegate agent`: the power devices of a GPU's host over HTTP, for a gateway elsewhere."""
