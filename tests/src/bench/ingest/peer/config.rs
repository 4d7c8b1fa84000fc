//! What is rsyslog told? The configurations of both ends, for what a row of the table promises.

use std::path::Path;

use audit_pki::ClientFiles;

use super::{SENDERS, SHIPPER};
use crate::site::COLLECTOR;

/// Lines that a queue's worker takes at once, and after which a queue on disk notes where it is.
const BATCH: u32 = 1024;
const LINES_IN_MEMORY: u32 = 50_000;
/// Unanswered lines in flight. With librelp's default two processes that had nothing to do moved 760
/// lines a second; from a thousand on it makes no difference.
const WINDOW: u32 = 20_000;

pub struct Setting {
    pub what: &'static str,
    /// By RELP; otherwise plain syslog over TLS, which has no answers.
    pub answered: bool,
    pub sender: Queue,
    pub receiver: Queue,
    /// Of the file, after each batch of the receiver's queue.
    pub sync: bool,
}

#[derive(Clone, Copy)]
pub enum Queue {
    /// None: the input's thread writes, line by line, and only then answers.
    Direct,
    Memory,
    /// Written, and left to the system to sync.
    Disk,
    /// Each line synced.
    SyncedDisk,
}

impl Queue {
    /// Of a ruleset. Waits rather than drops when it is full.
    fn parameters(self, name: &str) -> String {
        let worker = format!(
            "queue.dequeueBatchSize=\"{BATCH}\" queue.workerThreads=\"1\" queue.timeoutEnqueue=\"600000\""
        );
        let disk = format!(
            "queue.type=\"Disk\" queue.fileName=\"{name}\" queue.size=\"100000000\" \
             queue.maxDiskSpace=\"8g\" queue.maxFileSize=\"64m\" queue.saveOnShutdown=\"on\" \
             queue.checkpointInterval=\"{BATCH}\" {worker}"
        );
        match self {
            Queue::Direct => "queue.type=\"Direct\"".to_owned(),
            Queue::Memory => {
                format!("queue.type=\"FixedArray\" queue.size=\"{LINES_IN_MEMORY}\" {worker}")
            }
            Queue::Disk => disk,
            Queue::SyncedDisk => format!("{disk} queue.syncQueueFiles=\"on\""),
        }
    }

    /// Lines that an input puts into the queue under one lock. Where each of them waits for a sync,
    /// many would keep the sender waiting for seconds.
    fn taken_at_once(self) -> u32 {
        match self {
            Queue::SyncedDisk => 16,
            Queue::Direct | Queue::Memory | Queue::Disk => BATCH,
        }
    }
}

/// Appends what arrives to `stored`, as it was before it was sent.
pub fn receiver(
    setting: &Setting,
    directory: &Path,
    stored: &Path,
    port: u16,
    files: &ClientFiles,
) -> String {
    let input = if setting.answered {
        format!(
            "module(load=\"imrelp\" tls.tlslib=\"gnutls\")\n\
             input(type=\"imrelp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"store\" {})\n",
            relp_tls(files, SHIPPER)
        )
    } else {
        format!(
            "module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" \
             streamDriver.authMode=\"x509/name\" permittedPeer=[\"{SHIPPER}\"])\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"store\")\n"
        )
    };
    let ruleset = format!(
        "template(name=\"line\" type=\"string\" string=\"%msg%\\n\")\n\
         ruleset(name=\"store\" {}) {{\n  \
         action(type=\"omfile\" file=\"{}\" template=\"line\" sync=\"{}\" asyncWriting=\"off\" \
         flushOnTXEnd=\"on\" ioBufferSize=\"256k\")\n}}\n",
        setting.receiver.parameters("received"),
        stored.display(),
        if setting.sync { "on" } else { "off" },
    );
    global(&directory.join("receiver"), files) + &ruleset + &input
}

/// Follows the files that appear in `input`: each sender those that begin with its number.
pub fn sender(
    setting: &Setting,
    directory: &Path,
    input: &Path,
    port: u16,
    files: &ClientFiles,
) -> String {
    let forward = if setting.answered {
        format!(
            "type=\"omrelp\" windowSize=\"{WINDOW}\" {}",
            relp_tls(files, COLLECTOR)
        )
    } else {
        // Not OpenSSL's driver: Debian 12's lets in a sender whose name is not permitted.
        format!(
            "type=\"omfwd\" protocol=\"tcp\" TCP_Framing=\"octet-counted\" streamDriver=\"gtls\" \
             streamDriverMode=\"1\" streamDriverAuthMode=\"x509/name\" \
             streamDriverPermittedPeers=\"{COLLECTOR}\""
        )
    };
    let mut text = global(&directory.join("sender"), files);
    text += "module(load=\"imfile\" mode=\"inotify\")\n";
    if setting.answered {
        text += "module(load=\"omrelp\" tls.tlslib=\"gnutls\")\n";
    }
    text += "template(name=\"wire\" type=\"string\" \
             string=\"<13>1 %timestamp:::date-rfc3339% host app - - - %msg%\")\n";
    for sender in 0..SENDERS {
        text += &format!(
            "ruleset(name=\"send{sender}\" {}) {{\n  \
             action({forward} target=\"127.0.0.1\" port=\"{port}\" template=\"wire\" \
             action.resumeRetryCount=\"-1\" action.resumeInterval=\"1\")\n}}\n\
             input(type=\"imfile\" file=\"{}/{sender}-*\" tag=\"app\" ruleset=\"send{sender}\" \
             addMetadata=\"off\" maxSubmitAtOnce=\"{}\")\n",
            setting.sender.parameters(&format!("sent{sender}")),
            input.display(),
            setting.sender.taken_at_once(),
        );
    }
    text
}

/// With the credentials of whatever speaks plain syslog.
fn global(work: &Path, files: &ClientFiles) -> String {
    format!(
        "global(workDirectory=\"{}\" maxMessageSize=\"64k\" \
         defaultNetstreamDriverCAFile=\"{}\" defaultNetstreamDriverCertFile=\"{}\" \
         defaultNetstreamDriverKeyFile=\"{}\")\n",
        work.display(),
        files.ca.display(),
        files.certificate.display(),
        files.key.display(),
    )
}

/// Certificates of our authority at both ends, and only the other's name.
fn relp_tls(files: &ClientFiles, other: &str) -> String {
    format!(
        "tls=\"on\" tls.authMode=\"name\" tls.permittedPeer=[\"{other}\"] tls.caCert=\"{}\" \
         tls.myCert=\"{}\" tls.myPrivKey=\"{}\"",
        files.ca.display(),
        files.certificate.display(),
        files.key.display(),
    )
}
