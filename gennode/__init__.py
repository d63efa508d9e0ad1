"""gennode: strangers' machines run one large language model together."""
