"""User encoders and candidate scorers by name; each file holds one config and one network."""

from headwater_models.networks.bert4rec import BERT4Rec, BERT4RecConfig
from headwater_models.networks.candidate_scorer import CandidateScorer
from headwater_models.networks.deepfm import DeepFM, DeepFMConfig
from headwater_models.networks.dlrm import DLRM, DLRMConfig
from headwater_models.networks.gru4rec import GRU4Rec, GRU4RecConfig
from headwater_models.networks.lru import LRUConfig, LRURec
from headwater_models.networks.multi_interest import MultiInterest, MultiInterestConfig
from headwater_models.networks.narm import NARM, NARMConfig
from headwater_models.networks.nfm import NFM, NFMConfig
from headwater_models.networks.sasrec import SASRec, SASRecConfig
from headwater_models.networks.user_encoder import Events, RecurrentEncoder, UserEncoder, WindowedEncoder

ARCHITECTURES = {
    "bert4rec": (BERT4RecConfig, BERT4Rec),
    "gru4rec": (GRU4RecConfig, GRU4Rec),
    "lru": (LRUConfig, LRURec),
    "multi-interest": (MultiInterestConfig, MultiInterest),
    "narm": (NARMConfig, NARM),
    "sasrec": (SASRecConfig, SASRec),
}
SCORERS = {
    "deepfm": (DeepFMConfig, DeepFM),
    "dlrm": (DLRMConfig, DLRM),
    "nfm": (NFMConfig, NFM),
}
__all__ = [
    "ARCHITECTURES",
    "SCORERS",
    "CandidateScorer",
    "Events",
    "RecurrentEncoder",
    "UserEncoder",
    "WindowedEncoder",
]
