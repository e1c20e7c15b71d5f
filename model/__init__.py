"""Registries: what a run may choose by name. A new one is a file, or a class in one, and an entry here."""

from data.registry import Registry

BACKBONES = Registry(
    sparsenn="model.sparsenn:SparseNN",
    bprmf="model.factorisation:BPRMF",
    pmf="model.factorisation:PMF",
    ncf="model.ncf:NeuMF",
    gccf="model.graphs:GCCF",
    lightgcn="model.graphs:LightGCN",
    slim="model.slim:NeighbourSLIM",
)
METHODS = Registry(
    none="model.methods.none:Unfair",
    fabuhs="model.methods.fabuhs:FABUHS",
    fda="model.methods.fda:FDA",
    cofair="model.methods.cofair:Cofair",
    fade="model.methods.fade:FADE",
    fade_adversary="model.methods.fade_adversary:FADEAdversary",
    parity="model.methods.parity:Parity",
    bnslim="model.methods.bnslim:BNSLIM",
    fairuser="model.methods.fairuser:FairUser",
)
SYNTHESIZERS = Registry(
    mean="model.sparsenn:MeanSynthesis",
    attention="model.sparsenn:AttentionSynthesis",
    gru="model.sparsenn:GRUSynthesis",
    none=None,  # the two-tower base model without a history
)
NCF_FORMS = Registry(neumf="model.ncf:NeuMF", ncf_bpr="model.ncf:NCFBPR")
SCORERS = Registry(dot_compress="model.scorers:DotCompressScorer", dot="model.scorers:DotScorer")
LOSSES = Registry(
    margin="model.losses:margin_ranking_loss",
    bpr="model.losses:bpr_loss",
    softmax="model.losses:softmax_loss",
    cross_entropy="model.losses:cross_entropy_loss",
)
MODES = Registry(
    train="model.modes.train:train",
    evaluate="model.modes.serving:evaluate_checkpoint",
    recommend="model.modes.serving:recommend",
    score="model.modes.score_lists:score_rankings",
    compare="model.modes.compare:compare_runs",
)
