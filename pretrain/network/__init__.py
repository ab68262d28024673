"""The network: shape, layers, parameters by name, initial weights, surgery, arithmetic."""
