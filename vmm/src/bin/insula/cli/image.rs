//! `insula image`

use clap::Subcommand;

pub(super) const EXAMPLES: &str = "\
Examples:
  insula image build               everything that guests need; whatever is there is kept
  insula image build busybox       one image, by name
  insula image list
  insula image verify              does every file still have the hash that it was built with?
  insula image prune               remove what newer images have replaced

Images are kept in $INSULA_CACHE, else $XDG_CACHE_HOME/insula, else ~/.cache/insula, by a hash
of all that went into them. Every command builds what it needs by itself; the first build takes
a few minutes, for the kernel.";

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build images that are not there yet
    Build {
        /// Images, by name [default: all that guests need]
        names: Vec<String>,
    },
    /// List the images in the cache
    #[command(visible_alias = "ls")]
    List,
    /// Check every image in the cache by its hashes
    Verify,
    /// Remove images that are not in use any more
    Prune {
        /// Remove all images
        #[arg(long)]
        all: bool,
    },
}
