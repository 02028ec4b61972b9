"""The same as a LazyConfig: `tools/detectron2_predict.py --config-file configs/detectron2/mask_rcnn_lazy.py`."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from reliability_hooks.detectron2 import with_reliability

zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
dataloader, optimizer, lr_multiplier, train = zoo.dataloader, zoo.optimizer, zoo.lr_multiplier, zoo.train
train.init_checkpoint = "model_final.pth"
model = L(with_reliability)(
    model=zoo.model, monitor="runs/detectron2-maskrcnn-lazy", weights="${train.init_checkpoint}", enabled=True
)
