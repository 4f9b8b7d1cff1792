"""The paper's study in miniature: what to train, how, and the rows it leaves behind."""
