"""Make a pretrained StyleGAN generator better with a pretrained diffusion model: `python refine.py --help`."""

from refine.commands.run import main

if __name__ == "__main__":
    main()
