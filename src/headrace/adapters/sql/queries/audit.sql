-- name: add_audit_event
INSERT INTO audit_events (sequence, tenant, at_us, principal, action, subject, document)
VALUES (
    (SELECT COALESCE(MAX(sequence), 0) + 1 FROM audit_events),
    :tenant, :at_us, :principal, :action, :subject, :document
);
