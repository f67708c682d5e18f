//! Drives the lab: `lab [--icount] start|stop|status|run CMD…|shell|push FILE PATH|fetch PATH FILE|sync FILE…`.
use std::time::Instant;

use images::lab::{self, Command, Lab, LabConfig, Payload};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let icount = args.first().is_some_and(|a| a == "--icount");
    if icount {
        args.remove(0);
    }
    let cache = images::Cache::user()?;
    let progress = images::Progress::stderr();
    let begun = Instant::now();
    match args[0].as_str() {
        "status" => println!("{}", serde_json::to_string_pretty(&lab::status()?)?),
        "stop" => println!("{}", lab::stop(icount)?),
        verb => {
            let mut config = LabConfig::new(icount, cache)?;
            config.agent = std::env::var_os("AGENT").map(Into::into);
            let lab = match Lab::ensure(&config, &progress) {
                Ok(lab) => lab,
                Err(e) => {
                    eprintln!("error: {e}");
                    std::process::exit(125);
                }
            };
            eprintln!("ensure: {:?}", begun.elapsed());
            let code = match verb {
                "start" => 0,
                "sync" => {
                    let mut payload = Payload::new();
                    for file in &args[1..] {
                        payload.program(file.as_ref())?;
                    }
                    eprintln!("{:?}", lab.sync(&mut payload)?);
                    0
                }
                "push" => {
                    eprintln!("{}", lab.push(args[1].as_ref(), &args[2], 0o755)?);
                    0
                }
                "fetch" => {
                    eprintln!("{}", lab.fetch(&args[1], args[2].as_ref())?);
                    0
                }
                _ => {
                    let mut command = if verb == "shell" {
                        Command::new(["bash", "-l"])
                    } else {
                        Command::new(args[1..].to_vec())
                    };
                    command.terminal = true;
                    match lab.run(&command) {
                        Ok(code) => code,
                        Err(e) => {
                            eprintln!("error: {e}");
                            e.exit_code()
                        }
                    }
                }
            };
            eprintln!("total: {:?}", begun.elapsed());
            drop(lab);
            std::process::exit(code.into());
        }
    }
    Ok(())
}
