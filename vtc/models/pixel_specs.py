from vtc.pixel_settings import plain_spec


def single_view_pixels(settings):
    crops = settings.get("image_processor_type", "CLIPImageProcessor").startswith("CLIP")
    return plain_spec({"do_center_crop": crops} | dict(settings))
