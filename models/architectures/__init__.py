"""The user encoders and the candidate scorers by name, each one file with its config and its network."""

from models.architectures.bert4rec import BERT4Rec, BERT4RecConfig
from models.architectures.candidate_scorer import CandidateScorer
from models.architectures.deepfm import DeepFM, DeepFMConfig
from models.architectures.dlrm import DLRM, DLRMConfig
from models.architectures.encoder import Events, RecurrentEncoder, UserEncoder, WindowedEncoder
from models.architectures.gru4rec import GRU4Rec, GRU4RecConfig
from models.architectures.lru import LRUConfig, LRURec
from models.architectures.multi_interest import MultiInterest, MultiInterestConfig
from models.architectures.narm import NARM, NARMConfig
from models.architectures.nfm import NFM, NFMConfig
from models.architectures.sasrec import SASRec, SASRecConfig

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
