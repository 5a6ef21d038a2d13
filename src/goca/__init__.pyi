from . import ray as ray
from .diffusion.checkpoints import write_settings as write_settings
from .errors import GocaError as GocaError
from .guidance import guide as guide
from .guidance.guider import SemanticAwareGuidance as SemanticAwareGuidance
from .inspection import Inspection as Inspection
from .maths.background import Background as Background
from .plan import Plan as Plan
from .recipe import CONCEPT_ATTENTION as CONCEPT_ATTENTION
from .recipe import DAAM as DAAM
from .recipe import DIFFSEGMENTER as DIFFSEGMENTER
from .recipe import FTTM as FTTM
from .recipe import GOCA as GOCA
from .recipe import GOCA_BALANCED as GOCA_BALANCED
from .recipe import GOCA_COMPOUND as GOCA_COMPOUND
from .recipe import GOCA_OPEN as GOCA_OPEN
from .recipe import GOCA_QUALITY as GOCA_QUALITY
from .recipe import GOCA_REFINED as GOCA_REFINED
from .recipe import GOCA_RELEASED as GOCA_RELEASED
from .recipe import RECIPES as RECIPES
from .recipe import VANILLA as VANILLA
from .recipe import Recipe as Recipe
from .request import SegmentationRequest as SegmentationRequest
from .segmentation import Instance as Instance
from .segmentation import Presence as Presence
from .segmentation import ScoreMaps as ScoreMaps
from .segmentation import Segmentation as Segmentation
from .segmenter import Segmenter as Segmenter
from .settings_choice import automatic_settings as automatic_settings
from .settings_choice import choose_settings as choose_settings
from .tracing import trace as trace
from .trainingset import TrainingSet as TrainingSet

__version__: str

__all__: list[str]
