"""The paper's tables: losses against each other, width by width, beside the paper's figures."""
