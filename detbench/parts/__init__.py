"""What a recipe may say: every setting of every experiment, as frozen parts that import no torch.

A part is a frozen dataclass whose fields are an author's choices. What has no weights is called
(`Poto()(predictions, targets)`); what has weights is built (`ResNet().build()`). Both reach the tensor side
(core, data, engine) by an import inside the method: that is the only bridge, so a recipe can be read,
checked and hashed on a machine without torch.

Unions such as `Assigner` are the registries: closed, importable, known to the type checker.
"""
