"""The paper's models: the Vision Transformer, the BiT ResNet, and the names under which people know them."""
