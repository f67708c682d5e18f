//! Users of a root file system: looked up in its own `/etc/passwd` and
//! `/etc/group`, and nowhere else. Runs in the process that becomes the user, so that what a
//! tenant wrote there is parsed with the tenant's rights.

use std::os::fd::AsFd;

use super::root;

/// Largest file that is looked at, in bytes.
const LIMIT: usize = 1 << 20;

/// The shell of users who have chosen none.
const SHELL: &str = "/bin/sh";

/// Who a process runs as, in the IDs of its VPS or machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) name: Option<String>,
    pub(crate) shell: String,
}

impl User {
    /// The administrator.
    pub(crate) fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/root".into(),
            name: Some("root".into()),
            shell: SHELL.into(),
        }
    }

    /// Finds `user`, `uid`, `user:group` or `uid:gid`. `None`: no such user or
    /// group, an ID of `range` or above, or not one of these forms.
    pub(crate) fn find(root: impl AsFd, text: &str, range: u32) -> Option<Self> {
        let passwd = root::read_file(&root, "etc/passwd", LIMIT).unwrap_or_default();
        let group = root::read_file(&root, "etc/group", LIMIT).unwrap_or_default();
        resolve(
            text,
            range,
            &String::from_utf8_lossy(&passwd),
            &String::from_utf8_lossy(&group),
        )
    }
}

/// A numeric ID below `range`: digits only, no sign, no spaces.
fn id(text: &str, range: u32) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id < range)
}

fn resolve(text: &str, range: u32, passwd: &str, group: &str) -> Option<User> {
    let id = |text: &str| id(text, range);
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let by_number = id(user);
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ref rest @ ..] = fields[..] else {
            return None;
        };
        let (uid, gid) = (id(uid)?, id(gid)?);
        // A name of digits is taken as a number: never as another's name.
        let found = by_number.map_or(!name.is_empty() && name == user, |number| number == uid);
        found.then(|| {
            let shell = rest.first().filter(|shell| !shell.is_empty());
            User {
                uid,
                gid,
                groups: Vec::new(),
                home: home.to_owned(),
                name: Some(name.to_owned()),
                shell: (*shell.unwrap_or(&SHELL)).to_owned(),
            }
        })
    });
    let mut found = match (entry, by_number) {
        (Some(user), _) => {
            let name = user.name.as_deref().unwrap_or_default();
            let lines = group.lines();
            User {
                groups: lines.filter_map(|line| member(line, name, range)).collect(),
                ..user
            }
        }
        (None, Some(uid)) => User {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: "/".into(),
            name: None,
            shell: SHELL.into(),
        },
        (None, None) => return None,
    };
    if let Some(wanted) = wanted_group {
        found.gid = id(wanted).or_else(|| {
            group.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next()? == wanted && !wanted.is_empty())
                    .then(|| fields.nth(1))?
                    .and_then(id)
            })
        })?;
        found.groups.clear();
    }
    found.groups.truncate(64);
    Some(found)
}

/// The group of `line`, when `user` is one of its members.
fn member(line: &str, user: &str, range: u32) -> Option<u32> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, gid, members, ..] = fields[..] else {
        return None;
    };
    members
        .split(',')
        .any(|member| member == user)
        .then(|| id(gid, range))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34::/srv:/bin/sh\n7:x:8:8::/h:/x\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:4:adm,www\nweb:x:50:www\n";

    fn ids(text: &str) -> Option<(u32, u32, Vec<u32>)> {
        resolve(text, 65_536, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn all_forms() {
        assert_eq!(ids("www"), Some((33, 34, vec![4, 50])));
        assert_eq!(ids("33"), Some((33, 34, vec![4, 50])));
        assert_eq!(ids("www:log"), Some((33, 4, vec![])));
        assert_eq!(ids("1000:50"), Some((1000, 50, vec![])));
        assert_eq!(ids("1000"), Some((1000, 0, vec![])));
        assert_eq!(ids("0"), Some((0, 0, vec![])));
    }

    #[test]
    fn what_is_not_there_or_not_a_user_is_refused() {
        for text in [
            "",
            ":",
            "nobody",
            "www:",
            "www:nogroup",
            "-1",
            "+33",
            " 33",
            "65536",
            "4294967296",
            "broken",
            ":0",
        ] {
            assert_eq!(ids(text), None, "{text:?}");
        }
        // A user called "7" is never found by that name.
        assert_eq!(ids("7"), Some((7, 0, vec![])));
    }

    proptest::proptest! {
        #[test]
        fn any_files_and_any_name(text in ".*", passwd in ".*", group in ".*") {
            let _ = resolve(&text, 65_536, &passwd, &group);
        }
    }
}
