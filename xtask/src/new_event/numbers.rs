//! Which numbers has a system call? As the kernel's headers on this machine say.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// A call and its numbers by x86_64, arm64, i386 and x32 (0 for none; of x32 only one of its own).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub numbers: [u16; 3],
    pub x32: u16,
}

/// From here on x32 has numbers of its own.
const X32_ONLY: u16 = 512;

impl Call {
    /// NAME, or NAME=X86_64,ARM64,I386.
    pub fn find(text: &str) -> Result<Self> {
        if let Some((name, numbers)) = text.split_once('=') {
            return given(name, numbers)
                .with_context(|| format!("--call {text}: NAME=X86_64,ARM64,I386 is expected"));
        }
        let x86 = |file: &str| number(&header(&format!("asm/{file}"))?, text);
        let numbers = [
            x86("unistd_64.h")?,
            number(&header("asm-generic/unistd.h")?, text)?,
            x86("unistd_32.h")?,
        ];
        ensure!(
            numbers != [0; 3],
            "no system call {text} in this machine's headers; newer ones: --call {text}=X86_64,ARM64,I386"
        );
        let x32 = x86("unistd_x32.h")?;
        Ok(Self {
            name: text.to_owned(),
            numbers,
            x32: if x32 >= X32_ONLY { x32 } else { 0 },
        })
    }
}

fn given(name: &str, numbers: &str) -> Result<Call> {
    let numbers: Vec<u16> = numbers
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let Ok(numbers) = <[u16; 3]>::try_from(numbers) else {
        bail!("not three numbers")
    };
    Ok(Call {
        name: name.to_owned(),
        numbers,
        x32: 0,
    })
}

fn header(name: &str) -> Result<String> {
    let places = ["/usr/include/x86_64-linux-gnu", "/usr/include"];
    let mut paths = places.iter().map(|place| PathBuf::from(place).join(name));
    let found = paths.find(|path| path.is_file()).with_context(|| {
        format!(
            "no {name} in {}: install the kernel's headers (linux-libc-dev)",
            places.join(" or ")
        )
    })?;
    fs::read_to_string(&found).with_context(|| found.display().to_string())
}

/// 0 where the header has no such call.
fn number(header: &str, call: &str) -> Result<u16> {
    for line in header.lines() {
        let Some(rest) = line.strip_prefix("#define __NR") else {
            continue;
        };
        // __NR3264_truncate: one number for calls that differ by word size.
        let rest = rest.strip_prefix("3264").unwrap_or(rest);
        let Some((name, value)) = rest.strip_prefix('_').and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        if name == call {
            let digits = value.trim().trim_start_matches("(__X32_SYSCALL_BIT + ");
            let digits = digits.trim_end_matches(')');
            return digits
                .parse()
                .with_context(|| format!("{line:?} is not understood"));
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let header = "#define __NR_acct 163\n#define __NR_kexec_load (__X32_SYSCALL_BIT + 528)\n\
                      #define __NR3264_truncate 45\n";
        for (name, expected) in [
            ("acct", 163),
            ("kexec_load", 528),
            ("truncate", 45),
            ("acc", 0),
        ] {
            assert_eq!(
                number(header, name).expect("understood"),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn numbers_can_be_given() {
        let call = Call::find("new_call=500,500,500").expect("given");
        assert_eq!((call.numbers, call.x32), ([500; 3], 0));
        let error = Call::find("new_call=500,1").expect_err("two").to_string();
        assert!(error.contains("NAME=X86_64,ARM64,I386"), "{error}");
    }
}
